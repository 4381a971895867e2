"""The verbs on data sets: prepare, import, check, pack."""
