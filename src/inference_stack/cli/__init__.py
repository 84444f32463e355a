"""The istack command: composes the rooms, prints for people."""
