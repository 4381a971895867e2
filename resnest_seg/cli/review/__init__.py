"""Verbs of results: reports of runs, tables of runs, audits of labels, what to label next."""
