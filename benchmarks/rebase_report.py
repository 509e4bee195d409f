def report(lab): pass
