"""The old name of `migm.metric_reference`, kept for one version."""

from migm.__main__ import run_renamed

if __name__ == "__main__":
    run_renamed("reference")
