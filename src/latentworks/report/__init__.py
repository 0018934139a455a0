"""A run as one HTML page: what it is, how it went, what it draws, what was measured of it."""

from latentworks.report.page import Page, report

__all__ = ["Page", "report"]
