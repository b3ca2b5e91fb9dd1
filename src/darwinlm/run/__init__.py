"""A run from what was asked to its report: `request` checks all of it, `stages` do it, `plan`, `prediction` say what it takes."""
