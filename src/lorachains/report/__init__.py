"""Tables, tests and figures of run folders: `python -m lorachains.report FOLDER …`.

`reading` takes the folders, `cells` groups the runs and chooses by validation, `statistics` and `comparing` test the
rows against a baseline, `published` brings in a paper's values. What is shown is a list of `tables` and of `figures`,
which `formats` and `page` write.
"""
