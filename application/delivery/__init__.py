"""Messages to named recipients: reported, acknowledged, retried, stored until the user is back."""
