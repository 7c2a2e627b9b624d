"""The paper's analysis figures of trajectories, on any base."""
