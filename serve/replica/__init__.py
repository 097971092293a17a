"""One model that answers: its deployment, its engine and its drift."""
