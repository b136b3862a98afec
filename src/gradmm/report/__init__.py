"""What people see of a run: report and data set card, made from run folders alone. No torch here."""
