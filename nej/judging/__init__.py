"""How good a model is, where it fails, and whether another is better.

intervals says how sure a figure is, calibration how far a confidence can be believed; judgement,
slices and mistakes are what is found of a model, labelled the papers of another file, evaluation
puts them together. embeddings, judgement_figures and figures are to look at; report and card tell
it. behaviour asks the model itself; lineage knows what it has seen, comparison and scorecard set
two side by side, and promotion puts one in use.
"""
