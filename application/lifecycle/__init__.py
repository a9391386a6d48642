"""How a connection begins, resumes, changes its user and is ended; how a node drains."""
