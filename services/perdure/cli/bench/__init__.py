"""`perdure bench`: perdure beside the raw engine and its peers, in one run, as ratios."""
