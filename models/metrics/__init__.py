"""What generated pictures, videos, geometry and dances are measured by: pure functions over tensors, and what each is.

A function says what one sample reaches, or gives sums and counts per sample that ``statistics.summarise`` makes means
of; none of them knows a family. ``registry.METRICS`` holds the declaration of each; docs/evaluation.md defines them.
"""
