"""Runs drawn for people."""
