"""The agent of one machine: starts and supervises workers, passes requests down and tokens up."""
