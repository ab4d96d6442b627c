"""What tests share: temporary Django projects and the servers under them."""
