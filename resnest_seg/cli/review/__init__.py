"""Verbs that look back at what was trained: reports of runs, tables of runs, audits of labels, what to label next."""
