"""The seams: plug-in Protocols and the values that cross between planes. No behaviour."""
