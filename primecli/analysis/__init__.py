"""Looking at shards and checkpoints. A command calls the module on the left; the others are below it.

query.py            SQL over shards
validation.py       everything that is wrong with shards
statistics_view.py  statistics.py: accuracy, pass@k, lengths, rewards
rollout_view.py     search.py: which rollouts; rollout.py: one of them; rollout_screen.py, heatmap.py: how it is drawn
lineage_view.py     lineage.py: what made a shard or a checkpoint, and a script that makes it again
audit_view.py       audit.py: the metrics, from responses.py and estimates.py; audit_gates.py: --fail-on
terminal.py         text and tables on a terminal, for all of them
"""
