"""A monitor that remembers what it was told."""

from hybridizer.core.progress import SilentMonitor


class Notes(SilentMonitor):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)
