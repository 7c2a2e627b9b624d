"""The old name of `migm.install_scorers`, kept for one version."""

from migm.__main__ import run_renamed

if __name__ == "__main__":
    run_renamed("scorers.install")
