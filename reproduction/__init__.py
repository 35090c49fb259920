"""The paper's tables and figures as data, and one engine that trains their arms, at its size or in miniature."""
