"""`metalearn bench`: the same work done by us and by peers, checked to be equal and timed side by side in one
run.
"""
