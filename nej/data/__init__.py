"""The data under version control: where papers come from, what is new in them, and are they sound.

sources fetches the CSV and checks it against the version that git pins; feed asks arXiv for new
papers, additions merges them by id from any of the formats that records reads; revisions has the
version of another commit, difference tells two apart, gate says whether one can be trained on, and
data_figures draws it.
"""
