"""Recipes: experiments of several steps as one YAML file, run by one command, predicted from configurations alone."""
