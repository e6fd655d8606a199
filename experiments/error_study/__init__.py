"""The study: how well does the approximation error predict the compressed network's performance?"""
