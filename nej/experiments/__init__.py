"""Many runs: tracked, listed, made again, and searched for the best settings.

tracking and tracked_model write a run to Weights & Biases, runs lists what is in models/, and
reproduction makes a model again from its manifest. A sweep's yaml is read by search_space and
sweep; trial tries one setting, search chooses the next, and sweep_report tells what came of it.
"""
