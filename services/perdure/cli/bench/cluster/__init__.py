"""`perdure bench --cluster`: the cluster beside raw clients of the same engines, as ratios."""
