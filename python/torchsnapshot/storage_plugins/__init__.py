"""Storage plugins that come with the package."""
