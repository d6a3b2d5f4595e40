"""From folders of what was generated to numbers: per sample, over all, against others, on a page."""
