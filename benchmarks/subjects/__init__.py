"""What is measured on: the embedded model or one that is named, and pep-llama of the shared folder."""
