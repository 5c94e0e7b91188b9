"""Names of the variants that models, training settings and commands take; the first of each is the default."""

CHOICES = {
    "box_pooling": ("roi_align", "roi_pool"),
    "mask_head": ("fcn", "unet"),
    "mask_classes": ("per_class", "agnostic"),
    "rpn_loss": ("bce", "focal"),
    "box_loss": ("smooth_l1", "l1", "weighted_smooth_l1", "giou", "diou", "ciou"),
    "mask_loss": ("bce", "dice", "bce_dice"),
}
