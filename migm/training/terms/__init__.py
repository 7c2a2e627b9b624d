"""Terms of training objectives: a file for each, chosen and weighed by the YAML files of conf/objective."""
