"""`perdure demo`: an agent process is killed again and again, and loses nothing."""
