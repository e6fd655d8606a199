"""What layers take on a device, dense and factorised: measured once, asked for any rank."""
