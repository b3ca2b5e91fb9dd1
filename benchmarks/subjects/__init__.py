"""What is measured on: the embedded model, and pep-llama of the shared folder."""
