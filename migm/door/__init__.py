"""The Python interface behind `import migm`: the commands' configs and objects for notebooks and scripts."""
