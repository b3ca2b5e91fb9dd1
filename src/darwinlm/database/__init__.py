"""Second-order levels of every module: Hessians, Optimal Brain Surgeon, and the files they are kept in."""
