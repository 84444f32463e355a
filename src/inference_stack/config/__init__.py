"""One typed tree of settings, from YAML, environment and flags. A field's text is its CLI help and its documentation."""
