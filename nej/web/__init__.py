"""The web service and its page.

serving starts and ends the processes; api, guard, schemas, reference and page face the network;
service answers a request with batcher, which gathers papers of many, and model_in_use, whose model
may be replaced meanwhile; signals are for Prometheus.
"""
