"""Planted bugs: is what ought to notice them awake?"""
