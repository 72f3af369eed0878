"""What people see of plans, tables, differences and live runs."""
