"""What measurements print: tables, and when and where they were made."""
