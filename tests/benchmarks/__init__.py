"""How fast it is, beside what PostgreSQL does without us in the same run: ``python -m tests.benchmarks``.

Machines differ, and a shared one drifts by a factor of two within minutes; so each figure is paired with a bare one
measured right before and after it, and what counts is the ratio.
"""
