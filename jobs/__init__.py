"""Ray glue and the command line: each job binds library code to Ray."""
