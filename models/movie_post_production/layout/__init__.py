"""Layout: which tokens a box covers, instance tokens and Assemble-Attn."""
