"""Offline corpus tools: text to shuffled token files that training reads, without torch and without a GPU.

Importing the package loads nothing heavy; every module imports what it needs.
"""
