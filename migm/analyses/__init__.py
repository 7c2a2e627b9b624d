"""What trajectories look like: the paper's analysis figures on any base."""
