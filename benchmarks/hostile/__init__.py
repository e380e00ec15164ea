"""What users and attackers hand over; each module tries one kind, and says what went wrong."""
