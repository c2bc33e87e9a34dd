"""The faults: each does harm, shows that it hit, and ends; what comes after is the platform's."""
