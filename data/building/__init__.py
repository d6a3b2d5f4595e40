"""How ``data.building.build`` divides a build into parts, shares them among workers, and makes one data set of them."""
